"""Whether what loses something keeps the model's answers: judged on the user's requests, by the user's metric."""
