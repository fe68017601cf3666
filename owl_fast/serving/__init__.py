"""The server: OpenAI's API and the web page over an engine. Every bound is in limits.py."""
