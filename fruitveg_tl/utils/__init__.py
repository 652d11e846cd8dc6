"""What every layer may use: files, errors, progress, the machine."""
