"""Measure and predict: measure, measure_text, scaling, plan, plan_check."""
