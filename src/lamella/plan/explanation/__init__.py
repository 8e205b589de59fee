"""Why a plan is as it is, where else the model could run, and what differs between two plans."""
