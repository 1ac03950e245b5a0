"""From YAML files and a command line to one checked config: sections, sources, messages, help, schema."""
