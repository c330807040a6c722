"""The downstream side: an app over HTTP that reads predictions, and computes one when asked."""
