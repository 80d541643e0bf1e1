"""The cases of public bug reports about tools of this kind, tried on crux as their reporters would."""
