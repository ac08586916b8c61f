"""Where instances come from: the Docker engine, an announced process."""
