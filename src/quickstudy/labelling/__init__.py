"""Labelling in the browser: photos become a classifier while somebody looks at them."""
