"""Wrong passwords are counted for all processes of the portal together (docs/decisions/0106)."""

import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="WrongPasswords",
            fields=[
                ("name", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("count", models.PositiveIntegerField(default=0)),
                ("since", models.DateTimeField(db_index=True, default=django.utils.timezone.now)),
            ],
            options={"verbose_name_plural": "wrong passwords"},
        ),
    ]
