import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("sites", "0003_reach")]

    operations = [
        migrations.AlterField(
            model_name="site",
            name="slug",
            field=models.CharField(
                help_text="What the site is called in addresses, file names and logs; it cannot change later.",
                max_length=15,
                unique=True,
                validators=[
                    django.core.validators.RegexValidator(
                        "^[a-z](?:[a-z0-9-]{0,13}[a-z0-9])?\\Z",
                        "Lower-case letters, digits and hyphens, a letter first; at most 15.",
                    )
                ],
            ),
        )
    ]
