"""The rules by which families of vision-language models resize and cut images; one file per kind of rule."""
