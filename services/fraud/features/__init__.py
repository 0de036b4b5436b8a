"""What is known of a payment beyond the payment itself: counters and profiles in Redis, as features."""
