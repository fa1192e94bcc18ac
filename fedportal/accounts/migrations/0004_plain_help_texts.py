"""Help texts in plainer words; nothing changes in the database."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0003_a_manager_of_their_own"),
    ]

    operations = [
        migrations.AlterField(
            model_name="user",
            name="role",
            field=models.CharField(
                choices=[
                    ("researcher", "Researcher"),
                    ("steward", "Site steward"),
                    ("operator", "Operator"),
                    ("auditor", "Auditor"),
                ],
                default="researcher",
                help_text="Researchers compose experiments, stewards are responsible for a site's data, operators manage the portal, auditors read everything and change nothing.",
                max_length=16,
            ),
        ),
    ]
