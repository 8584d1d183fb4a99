"""Serving: an HTTP endpoint on Ray Serve that paints with the registry's champion.

client ── HTTP ──► ingress (front.py: checks, limits, token, retries, page; no model)
                      │ PaintRequest            ▲ events
                      ▼                         │
                   painters (painter.py: backbone, policy, one thread with continuous batching)
                      │ looks at the alias
                      ▼
                   MLflow registry
"""
