"""What a vision-language model costs, from closed formulas: visual tokens, parameters, multiply-adds, memory. No torch.

All functions take plain numbers in frozen dataclasses; the named families, language models and models are only entries
of dictionaries (`families.py`, `language_models.py`, `models.py`).
"""
