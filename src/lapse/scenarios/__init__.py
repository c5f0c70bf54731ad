"""Three applications whose caches are kept true by the events of their message queues.

ecommerce   a catalogue of products
social      timelines of posts
analytics   metrics, their aggregations and dashboards

Each is a table of rules (lapse.invalidation.rules) and a few methods. Copy one for an application
of your own; base has what they share.
"""
