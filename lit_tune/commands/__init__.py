"""The verbs: one file each, with one public function whose signature is the verb's own options."""
