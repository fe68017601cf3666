"""Models that judge, behind an OpenAI-compatible server.

asking    a question to the judge, its reply as JSON, several at once
grades    one answer at a time, by the rubric that people have
pairs     two answers beside each other, a score each
kept      the file in which the replies lie
"""
