"""Forward passes that transformers lacks; torch and transformers only."""
