"""owl-nano: the pictures, the dialogues, the training and the results of the bundled model."""
