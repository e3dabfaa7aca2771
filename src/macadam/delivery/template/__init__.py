"""The files of a new project, as `scaffold` writes them: `{{ name }}` stands for the project's name."""
