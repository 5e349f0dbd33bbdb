"""Whatever comes from outside gives a value or a UserError. A few examples of each in `make test`, many by `make fuzz`."""
