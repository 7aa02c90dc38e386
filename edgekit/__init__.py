"""edgekit"""
