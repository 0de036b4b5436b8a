"""RPCs: request → domain → store → reply. The rooms that know both the contract and the domain."""
