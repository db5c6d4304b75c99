"""Looking at studies, profiles and models: tables with names, and interactive charts."""
