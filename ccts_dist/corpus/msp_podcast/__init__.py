"""MSP-Podcast: its label tables, raters and audio."""
