"""What `densepred prepare` does: brings published data sets from their archives into the layout that is read here."""
