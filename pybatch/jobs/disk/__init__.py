"""Writes files of which a crash, a full disk or a power failure leaves no half."""
