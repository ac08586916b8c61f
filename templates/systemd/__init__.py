"""Units for systemd, to be copied to /etc/systemd/system and edited: see docs/systemd.md."""
