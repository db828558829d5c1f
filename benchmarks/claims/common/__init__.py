"""What the claims share: nets, training by lanes, statistics, pictures, reports."""
