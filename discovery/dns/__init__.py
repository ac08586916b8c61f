"""The DNS role: answers the zone from the Catalog and forwards the rest."""
