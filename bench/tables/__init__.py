"""Tables of docs/bench.md and README, a module for each kind; `bench.report` puts them on their pages."""
