"""What a stage shows: finished figures, tables and sentences, one module a stage. Stages compute, these draw."""
