"""One file per problem."""
