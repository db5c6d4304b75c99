"""Ground floor: errors, settings, paths, files, seeds, devices."""
