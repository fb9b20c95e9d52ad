"""Where parts are computed; what is computed does not depend on it."""
