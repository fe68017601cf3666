"""Questions, answers, ratings and scores; the commands on them are in owl_fast/evaluate/."""
