"""What must not change unnoticed: numbers of the models, files, stored answers, tables."""
