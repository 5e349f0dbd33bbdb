"""A mixer, a block or a model of jaxeff as a module of another framework: one file for each framework, loaded by who uses it."""
