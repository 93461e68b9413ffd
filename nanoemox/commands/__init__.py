"""One file a command of `nanoemox`: its options and what it runs."""
