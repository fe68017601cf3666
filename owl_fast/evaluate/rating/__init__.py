"""Blind rating in a local web page.

sheets   what a rater is shown: the answers to each question, in an order that tells nothing
book     what raters said, on disk before they hear that it is
app      the page and its two requests
page/    the page
"""
