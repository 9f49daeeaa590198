"""Cross-modal conditional teacher-student training for speech emotion recognition. Importing it starts nothing."""
