"""Score every prefix of an embedding on real mteb tasks from one encode."""
