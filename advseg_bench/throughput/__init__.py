"""How fast implementations of an attack are on a suite's models, beside what no implementation could do better."""
