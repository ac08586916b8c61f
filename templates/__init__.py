"""Templates that come with discovery; installed, this directory is the package discovery.templates."""
