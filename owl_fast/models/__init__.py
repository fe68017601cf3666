"""The vision tower, the abstractor and LLaMA, and the three joined (owl.py); they know no files."""
