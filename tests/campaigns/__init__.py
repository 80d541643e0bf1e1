"""Campaigns: many seeded cases of one kind of fault, each with a short form among the slow tests and a long form run by hand."""
