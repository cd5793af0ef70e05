"""Where results go: whole files, growing files and streams, in the formats of tables."""
