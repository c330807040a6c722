"""Two models whose every score tells the interval, the entity and the version it came from."""
