"""A vision-language model as judge: which of two images is the better one for its prompt."""
