"""From a checkpoint to words: conversations, batches of questions, the terminal."""
