"""Why a model predicts what it predicts: importances of ASVs, and attention."""
